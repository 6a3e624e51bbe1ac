"""Experiments: each gives one table or figure, or those of one paper.

A file each: `demo`, `classifiers`, `ops`, `fedavg`, and `fedhybnn`, whose tables and pictures are
made in `fedhybnn_report`. A package each, for a paper: `hybnn` and `bdnet`. What they share are
`run_folder`, a run that can be stopped and goes on, and `report_text`, its figures as text;
`reports` writes the report of a run anew. `claims` is the ledger of both papers: what holds.
"""
