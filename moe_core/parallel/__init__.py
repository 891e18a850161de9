"""Several processes that train one model: data and expert parallel on torch.distributed, started by torchrun.

Every rank takes its own rows of each batch. Gates and standard layers are on all ranks; experts are dealt over the ranks of a
group, and tokens go to them and come back. What a gate decides, it decides for the whole batch on every rank: so each way of
balancing, each statistic and the noise are those of one process, whatever the number of ranks (docs/scaling.md).
"""
