"""Files and pictures: uploads that can be resumed, downloads by range (docs/media.md)."""
