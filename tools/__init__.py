"""What the commands of course.py do, one noun a file."""
