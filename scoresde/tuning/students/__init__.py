"""Students: models that are sampled in one to four evaluations, trained by the objectives here with the usual trainer.

=======================  ==============================================  ===================  =========================
objective                the network learns                              needs a teacher      solver
=======================  ==============================================  ===================  =========================
:class:`Progressive`     two of the teacher's steps in one               yes                  ``"student"``
:class:`Consistency`     the jump to the data, from any time             no, but may          ``"student: gamma=1.0"``
:class:`Shortcut`        the jump from any time to any earlier one       no                   ``"student"``
:class:`Reflow`          a flow whose trajectories are straight          pairs from one       any, such as ``"student"``
=======================  ==============================================  ===================  =========================

A student is a score model like any other: it is trained, saved, loaded and compared in the same way. The network of
:class:`Shortcut` takes the time at which a jump ends, ``MLP(.., jumps=True)``. The path ``"straight"`` makes jumps of equal
length from the noise to the data.
"""

from scoresde.tuning.students.consistency import Consistency
from scoresde.tuning.students.distillation import Taught, composed, jump
from scoresde.tuning.students.progressive import GridTimes, Progressive
from scoresde.tuning.students.reflow import Reflow, pairs
from scoresde.tuning.students.shortcut import Shortcut

__all__ = ["Consistency", "GridTimes", "Progressive", "Reflow", "Shortcut", "Taught", "composed", "jump", "pairs"]
