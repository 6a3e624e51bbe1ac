"""``tinybnn data``: data sets, and where they are."""

from __future__ import annotations

import dataclasses

from tinybnn import datasets
from tinybnn.cli.arguments import add_command, add_group, address, dataset
from tinybnn.cli.output import add_json, check_folder, check_outputs, say_for, write_json
from tinybnn.storage import printable


def add_data(commands):
    actions = add_group(
        commands,
        "data",
        "ACTION",
        "list, download or find data sets",
        "List, download or find data sets. They lie in $TINYBNN_DATA/NAME or in the user's cache.",
        "tinybnn data list",
    )
    _add_list(actions)
    _add_fetch(actions)
    _add_path(actions)


def _add_list(actions):
    show = add_command(
        actions,
        "list",
        _list,
        "list the data sets that are known, and where they are",
        "List the data sets that are known: images, where they were found, origin, licence.",
        "tinybnn data list",
    )
    add_json(show)


def _list(options):
    check_outputs(options, "json")
    rows = datasets.available()
    say = say_for(options)
    for row in rows:
        shape = "×".join(map(str, row.image_shape))
        images = f"{row.images[0]:,} + {row.images[1]:,}"
        where = str(row.folder) if row.folder else f"missing ({row.size / 1e6:,.0f} MB to fetch)"
        say(f"{row.name:<16}{images:<20}{shape:<10}{row.classes:>4} classes  {where}")
        say(f"{'':<16}{row.origin}; {row.licence}")
    listed = [
        {**dataclasses.asdict(row), "folder": str(row.folder) if row.folder else None}
        for row in rows
    ]
    write_json(options, listed)


def _add_fetch(actions):
    fetch = add_command(
        actions,
        "fetch",
        _fetch,
        "download data sets from their official addresses",
        "Download data sets, unless they are there. An interrupted download goes on where it\n"
        "stopped; a file gets its name only when its checksum is right.",
        "tinybnn data fetch mnist fashion-mnist",
    )
    fetch.add_argument("names", nargs="+", type=dataset, metavar="NAME")
    fetch.add_argument("--to", metavar="DIR", help="put them into DIR/NAME")
    fetch.add_argument(
        "--from", dest="mirror", type=address, metavar="URL", help="a mirror of the files"
    )
    fetch.add_argument(
        "--force", action="store_true", help="check every file, download it again if it is wrong"
    )


def _fetch(options):
    if options.to is not None:
        check_folder(options, "to")
    for name in options.names:
        folder = datasets.fetch(name, options.to, base_url=options.mirror, force=options.force)
        print(printable(f"{name}: {folder}"))


def _add_path(actions):
    find = add_command(
        actions,
        "path",
        _path,
        "print the folder of a data set",
        "Print the folder in which a data set is found.",
        "tinybnn data path mnist",
    )
    find.add_argument("name", type=dataset, metavar="NAME")


def _path(options):
    print(printable(str(datasets.path(options.name))))
