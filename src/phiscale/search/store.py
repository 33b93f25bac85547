"""Results of trainings that survive a kill: an Optuna study in an SQLite file, or in any SQL server.

One finished training is one trial of the study, added whole in one transaction. So a result is there or
it is not, and the study can be looked at with Optuna's own tools.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from phiscale.errors import MissingDependencyError, TrainingError, require
from phiscale.search.objective import Score, Trial

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from optuna.study import Study

__all__ = ["TrialStore", "quiet_optuna"]

_KEY, _SCORE, _SPEC, _SETTINGS = "key", "score", "spec", "settings"
_RETRY_HINT = "check the address, or leave it out: then a file in the run folder is used"


class TrialStore:
    """The recorded results of one study.

    A context manager; `close` lets the database go.

    Args:
        storage: An SQLite file, which is made where there is none; or a database as an SQLAlchemy URL, like
            ``postgresql://user@host/name``.
        study: Name of the study in the database.
        settings: What all trainings have in common, such as images and recipe, as plain values. Where the
            study is there already, it must have been begun with the same; None leaves that open.

    Raises:
        TrainingError: The database cannot be used, or the study was begun with other settings.
        MissingDependencyError: Optuna, or the driver of the database, is not installed.
    """

    def __init__(
        self, storage: str | Path, *, study: str = "phiscale", settings: Mapping[str, Any] | None = None
    ) -> None:
        self._optuna = require("optuna", extra="search")
        self.url = _as_url(storage)
        self._known: dict[str, Score] = {}
        with _one_line(self.url), quiet_optuna():
            self._storage = self._connect()
        try:
            self.study = self._open_study(study)
            if settings is not None:
                self._require_settings(settings)
        except BaseException:
            self.close()
            raise

    def _open_study(self, name: str) -> Study:
        with _one_line(self.url), quiet_optuna():
            study: Study = self._optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        return study

    def _connect(self) -> RDBStorage:
        try:
            return cast("RDBStorage", self._optuna.storages.RDBStorage(self.url))
        except ImportError as error:
            driver = getattr(error.__cause__ or error, "name", None) or str(error)
            raise MissingDependencyError(
                f"the driver {driver} of this database is not installed; for PostgreSQL run: "
                "pip install 'phiscale[postgres]'"
            ) from None

    # -- results -------------------------------------------------------------------------------

    def get(self, trial: Trial) -> Score | None:
        """The recorded result of a training; None where there is none yet."""
        if trial.key not in self._known:
            self._refresh()
        return self._known.get(trial.key)

    def put(self, trial: Trial, score: Score) -> None:
        """Record a result. Of two results of one trial the first counts."""
        if self.get(trial) is not None:
            return
        record = self._optuna.trial.create_trial(
            state=self._optuna.trial.TrialState.COMPLETE,
            value=score.top1,
            user_attrs={
                _KEY: trial.key,
                "name": trial.spec.name,
                "seed": trial.seed,
                "epochs": trial.epochs,
                _SCORE: score.to_dict(),
                _SPEC: trial.spec.to_dict(),
            },
        )
        with _one_line(self.url), quiet_optuna():
            self.study.add_trial(record)
        self._known[trial.key] = score

    def __len__(self) -> int:
        """How many results are recorded."""
        self._refresh()
        return len(self._known)

    def _refresh(self) -> None:
        with _one_line(self.url):
            for record in self.study.get_trials(deepcopy=False):
                attrs = record.user_attrs
                if _KEY in attrs and attrs[_KEY] not in self._known:
                    self._known[attrs[_KEY]] = Score.from_dict(attrs[_SCORE])

    # -- the study as a whole ------------------------------------------------------------------

    def _require_settings(self, settings: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(settings))
        with _one_line(self.url):
            stored = self.study.user_attrs.get(_SETTINGS)
            if stored is None:
                self.study.set_user_attr(_SETTINGS, wanted)
                return
        if stored == wanted:
            return
        names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
        changes = (f"{name} was {_short(stored.get(name))}, is {_short(wanted.get(name))}" for name in names)
        raise TrainingError(
            f"these are not the trainings that {self.url} was begun with: {'; '.join(changes)}. "
            "Give the same again, or choose another folder or study"
        )

    def close(self) -> None:
        """Let the database go."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def __enter__(self) -> TrialStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _as_url(storage: str | Path) -> str:
    if isinstance(storage, str) and "://" in storage:
        scheme, _, rest = storage.partition("://")
        # Which driver SQLAlchemy takes by itself depends on its version.
        return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else storage
    path = Path(storage).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot write to {path.parent}: {error.strerror or error}") from None
    return f"sqlite:///{path}"


@contextlib.contextmanager
def _one_line(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy and Optuna raise over a database into one line without its password."""
    sqlalchemy: ModuleType = require("sqlalchemy", extra="search")
    optuna: ModuleType = require("optuna", extra="search")
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        try:
            shown = sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
        except sqlalchemy.exc.ArgumentError:
            shown = "the storage"
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        raise TrainingError(f"cannot use {shown}: {reason}; {_RETRY_HINT}") from None


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence what Optuna tells of every study and trial."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
