"""The datasets `hf` and `webdataset`: read items that are packed together in large files."""
