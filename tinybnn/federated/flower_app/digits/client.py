"""The ClientApp, which runs on each SuperNode."""

from digits import task
from tinybnn.federated import flower

# Flower looks for an assignment without a type.
app = flower.client_app(task.client)
