"""Which packages a wheel contains: the rooms of sodp3d/, and configs/ of the checkout as sodp3d/configs.

Everything else about the package stands in pyproject.toml.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sodp3d", "sodp3d.*"]), "sodp3d.configs"],
    package_dir={"sodp3d.configs": "configs"},
)
