"""Leave the text twins of notebooks, and their build script, out of the installed package.

Everything else is configured in setup.cfg.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithoutTwins(build_py):
    """Install notebooks and pictures of tutorials/, which are data, but none of its modules."""

    def find_package_modules(self, package, package_dir):
        if package == "tinybnn.tutorials":
            return []
        return super().find_package_modules(package, package_dir)


setup(cmdclass={"build_py": BuildWithoutTwins})
