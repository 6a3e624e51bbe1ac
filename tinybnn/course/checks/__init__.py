"""The checks of the exercises, a file per chapter under the name of the student's file."""
