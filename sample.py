"""Sample a finished run: `python sample.py run=<run folder> sampler=heun sampler.num_steps=18`; see --help."""

from flowdiff.cli.sample import main

if __name__ == "__main__":
    main()
