"""``tinybnn data``: data sets, and where they are."""

from __future__ import annotations

import dataclasses

from tinybnn import datasets
from tinybnn.cli.arguments import Adder, address, argument, command, dataset, group
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json
from tinybnn.storage import printable


@command(
    "list",
    "list the known data sets, and where they are",
    "List the known data sets: images, folder, origin, licence.",
    "tinybnn data list",
    arguments=[add_json],
)
def show(options):
    check_outputs(options, "json")
    say, figures = say_for(options), []
    for row in datasets.available():
        folder = str(row.folder) if row.folder else None
        shape = "×".join(map(str, row.image_shape))
        images = f"{row.images[0]:,} + {row.images[1]:,}"
        where = folder or f"missing ({row.size / 1e6:,.0f} MB to fetch)"
        say(f"{row.name:<16}{images:<20}{shape:<10}{row.classes:>4} classes  {where}")
        say(f"{'':<16}{row.origin}; {row.licence}")
        figures.append({**dataclasses.asdict(row), "folder": folder})
    write_json(options, figures)


@command(
    "fetch",
    "download data sets from their official addresses",
    "Download the data sets that are missing. An interrupted download goes on where it\n"
    "stopped; a file gets its name only when its checksum is right.",
    "tinybnn data fetch mnist fashion-mnist",
    arguments=[
        argument("names", nargs="+", type=dataset, metavar="NAME"),
        argument("--to", metavar="DIR", help="put them into DIR/NAME"),
        argument(
            "--from", dest="mirror", type=address, metavar="URL", help="a mirror of the files"
        ),
        argument(
            "--force",
            action="store_true",
            help="check every file, and replace those that are wrong",
        ),
    ],
)
def fetch(options):
    if options.to is not None:
        check_folder(options, "to")
    for name in options.names:
        folder = datasets.fetch(name, options.to, base_url=options.mirror, force=options.force)
        print(printable(f"{name}: {folder}"))


@command(
    "path",
    "print the folder of a data set",
    "Print the folder of a data set.",
    "tinybnn data path mnist",
    arguments=[argument("name", type=dataset, metavar="NAME")],
)
def path(options):
    print(printable(str(datasets.path(options.name))))


data: Adder = group(
    "data",
    "ACTION",
    "list, download or find data sets",
    "List, download or find data sets. They are in $TINYBNN_DATA/NAME or in the user's cache.",
    "tinybnn data list",
    members=[show, fetch, path],
)
