"""Print the lowest versions that setup.cfg allows, as constraints for pip."""

import configparser
import re
from pathlib import Path

setup = configparser.ConfigParser(interpolation=None)
setup.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
required = setup["options"]["install_requires"], setup["options.extras_require"]["test"]
for line in filter(None, "\n".join(required).split("\n")):
    # A requirement without a lower bound cannot be tested, so it fails here.
    name, lowest = re.match(r"([\w-]+) *>= *([\w.]+)", line).groups()
    print(f"{name}=={lowest}")
# Newer versions warn about calls in the lowest matplotlib, and warnings are errors.
print("pyparsing<3.3")
