"""The ServerApp, which runs beside the SuperLink."""

from digits import task
from tinybnn.federated import flower

app = flower.server_app(task.server, task.validation)
