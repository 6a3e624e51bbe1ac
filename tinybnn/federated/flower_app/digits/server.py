"""The ServerApp, which runs beside the SuperLink."""

from digits import task
from tinybnn.federated import flower

# Flower looks for an assignment without a type.
app = flower.server_app(task.server, task.validation)
