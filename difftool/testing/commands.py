"""Commands have no laws but those of every component: what they do is theirs."""

LAWS = ()
