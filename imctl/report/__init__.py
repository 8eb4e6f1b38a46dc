"""What a run amounts to: promises and figures, on the screen, as JSON and as one HTML page."""
