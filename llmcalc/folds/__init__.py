"""The machine: every quantity is a fold over a model's ledger.

* `counts`: what costs grow with: tokens, pairs, slots, experts touched, once.
* `workloads`: the requests of a step; they give the value of every count.
* `pieces`: a fold as a list of pieces, each so much per count.
* `breakdowns`: a fold's terms for a workload, with the working.
* `conventions`: which tokens pass, which pairs and slots count, what is read.
* `owners`: what a device has of every item: its work.
* `storage`: formats of weights and of caches, and their bytes as pieces.
* `transformers`: what transformers computes and holds otherwise.

A fold turns the ledger into pieces once, before the workload is known; a workload of integers or
of arrays then gives the counts. Memory, roofline, serving and planning stand on this.
"""
