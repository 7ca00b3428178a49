# SPDX-License-Identifier: Apache-2.0
"""Adaptive search with Optuna: TPE proposes a trial when it starts,
the median rule prunes weak ones.

The study lives in a journal file on a shared disk or in a database, so several machines share it. A
proposal is made once per trial number and then kept, by the study and by the trial's own
`trial.json`.
"""

import warnings
from pathlib import Path

from bert4rec_jax.errors import UserError
from experiments.sweep import Choice, Overrides, Search

try:
    import optuna
except ImportError:  # optional
    optuna = None


class Study:
    """One search, shared by all launchers that open the same storage under the same name."""

    def __init__(self, search: Search, storage: str, name: str, common: Overrides):
        """Opens the study, or creates it.

        Args:
          search: the space and its settings.
          storage: path of a journal file, or a database URL such as postgresql://host/db.
          name: of the study within the storage.
          common: overrides that go under the proposals.

        Raises:
          UserError: Optuna is not installed, or the storage cannot be opened.
        """
        if optuna is None:
            raise UserError(
                "a sweep with SEARCH needs Optuna; run pip install 'bert4rec_jax[sweeps]' (from a "
                "clone: pip install -e '.[sweeps]')."
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._name = name
        self._common = common
        self._storage = _open_storage(storage)
        self._study = self._open(0)
        self._space = {key: _distribution(part) for key, part in search.space.items()}

    def overrides(self, index: int) -> Overrides:
        """Returns what trial `index` changes; proposes it at the first call, on any machine."""
        trial = self._find(index)
        if trial is None:
            # A sampler per trial: with one seed for all, every machine would start with the same
            # draws.
            trial = self._open(index).ask(self._space)
            trial.set_user_attr("index", index)
        return {**self._common, **self._search.fixed, **trial.params}

    def is_hopeless(self, index: int, step: int, value: float) -> bool:
        """Records a validation; returns whether the trial is below the median of the others at
        that step.
        """
        found = self._find(index, optuna.trial.TrialState.RUNNING)
        if found is None:  # retried after a failure: the study has closed that trial
            return False
        trial = optuna.trial.Trial(self._study, found._trial_id)
        if step not in found.intermediate_values:
            trial.report(value, step)
        return trial.should_prune()

    def conclude(self, index: int, state: str, value: float | None = None) -> None:
        """Closes a trial as finished (with its value), pruned or failed;
        a closed trial stays as it is.

        A trial that failed and finishes later is added as a second entry with the same parameters.
        """
        states = optuna.trial.TrialState
        found = self._find(index, states.RUNNING)
        if found is not None:
            final = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}[
                state
            ]
            self._study.tell(found.number, value if state == "finished" else None, state=final)
        elif state == "finished" and self._find(index, states.COMPLETE) is None:
            params = self._find(index).params
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=self._space,
                    value=value,
                    user_attrs={"index": index},
                )
            )

    def _open(self, index: int):
        search = self._search
        with (
            warnings.catch_warnings()
        ):  # multivariate and constant_liar count as experimental in some releases
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=search.seed * 1_000_003 + index,
                n_startup_trials=search.startup,
                multivariate=True,
                constant_liar=True,
            )
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=search.startup, n_warmup_steps=search.prune_after
        )
        return optuna.create_study(
            storage=self._storage,
            study_name=self._name,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler,
            pruner=pruner,
        )

    def _find(self, index: int, state=None):
        """Returns the last frozen trial with this number, optionally in one state only, or None."""
        states = None if state is None else (state,)
        trials = self._study.get_trials(deepcopy=False, states=states)
        return next((t for t in reversed(trials) if t.user_attrs.get("index") == index), None)


def _distribution(part):
    if isinstance(part, Choice):
        return optuna.distributions.CategoricalDistribution(part.values)
    if part.integer:
        return optuna.distributions.IntDistribution(int(part.low), int(part.high), log=part.log)
    return optuna.distributions.FloatDistribution(part.low, part.high, log=part.log)


def _open_storage(storage: str):
    try:
        if "://" in storage:
            return optuna.storages.get_storage(storage)
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
    except Exception as error:
        raise UserError(
            f"--storage {storage!r} cannot be opened: {type(error).__name__}: {error}"
        ) from error
