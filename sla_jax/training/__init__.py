"""Training of the reward channel on a frozen policy: pairs → features → losses → loop."""
