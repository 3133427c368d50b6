"""The web book: its pages are the .md files, the modules make what is generated."""
