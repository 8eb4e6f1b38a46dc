"""What a run amounts to: promises and measurements, on the screen, as JSON and as one HTML page."""
