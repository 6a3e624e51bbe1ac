"""The history of binary networks, made of the student's own pieces, on the bundled digits."""

from tinybnn.course.milestones import (
    adabin,
    bdnet,
    binaryconnect,
    binarynet,
    birealnet,
    hybnn,
    reactnet,
    xnornet,
)
from tinybnn.course.milestones.milestone import Milestone, Outcome

__all__ = ["MILESTONES", "Milestone", "Outcome"]

MILESTONES: dict[int, Milestone] = {
    page.MILESTONE.number: page.MILESTONE
    for page in (binaryconnect, binarynet, xnornet, birealnet, reactnet, adabin, hybnn, bdnet)
}
