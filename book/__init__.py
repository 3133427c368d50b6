"""The web book: its pages are the .md files, the modules here make what is generated at build time."""
