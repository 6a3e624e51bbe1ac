"""Experiments: each produces one table or figure, or those of one paper.

`catalogue` lists the experiments. `runner` carries out each of them: phases that leave files,
resuming, seeds, figures as JSON; `settings` declares their configurations, and `report` lays out
their reports. A file each: `classifiers`, `fedavg`, and `fedhybnn`, whose tables and pictures are
made in `fedhybnn_report`. A package each, for a paper: `hybnn` and `bdnet`. Computations without
training are `ops`, `bdnet.conditioning`, `demo`, and `claims`, the ledger of both papers.
"""
