"""Models as they are read, looked at and written: files, the workspace, and what a layer is."""
