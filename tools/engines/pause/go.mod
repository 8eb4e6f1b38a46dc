module imctl.dev/engines/pause // v1.0.0

go 1.24.0
