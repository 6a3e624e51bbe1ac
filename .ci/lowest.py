"""Print the lowest versions that setup.cfg allows, as constraints for pip."""

import configparser
from pathlib import Path

setup = configparser.ConfigParser(interpolation=None)
setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
required = setup["options"]["install_requires"], setup["options.extras_require"]["test"]
for line in "\n".join(required).split("\n"):
    if line:
        name, lowest = line.split(">=")  # a requirement without this bound cannot be tested
        print(f"{name.strip()}=={lowest.strip()}")
print(
    "pyparsing<3.3"
)  # later ones warn about calls in the lowest matplotlib, and warnings are errors
