"""The standing attack: damaged, hostile and unlucky input by the thousand, and what is right of each.

    make attack ARGS='[--seed N] [--n N] [--only KIND,...]'

Every input must end in exit code 0 or in one sentence, without a traceback, a hang, a changed number or a lost result.
`kinds.KINDS` is all that is tried, `planted.PLANTED` are faults that it must find, and `stage.Stage` is what a kind
works with.
"""
