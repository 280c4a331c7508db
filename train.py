"""Train a score flow (or a baseline): `python train.py flow.n_flows=5 activation=elu`; see --help."""

from flowdiff.cli.train import main

if __name__ == "__main__":
    main()
