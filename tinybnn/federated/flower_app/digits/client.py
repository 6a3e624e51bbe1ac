"""The ClientApp, which runs on each SuperNode."""

from digits import task
from tinybnn.federated import flower

app = flower.client_app(task.client)
