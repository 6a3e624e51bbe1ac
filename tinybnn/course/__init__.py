"""The course: exercises that check themselves, hints, milestones that run the student's code."""
