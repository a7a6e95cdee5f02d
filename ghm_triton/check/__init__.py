"""`python -m ghm_triton.check`: whether the losses compute what they must on this machine. It needs only PyTorch.

cases.py     what is compared: losses, shapes, dtypes, targets, masks
data.py      the tensors of a case, with no gradient norm beside an edge of a region
values.py    losses and gradients beside those of float64, in units of the tolerance
behavior.py  equal bits, no synchronization, CUDA graphs, a second device, torch.compile
times.py     times beside cross entropy and focal loss
machine.py   what is tested: device, driver, versions, backends
report.py    what is printed, and the CSV
columns.py   its columns, which are those of perf.sweep
"""
