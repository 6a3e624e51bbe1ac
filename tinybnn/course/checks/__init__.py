"""The checks of each chapter's exercises; a file here has the name of the student's file."""
