"""Improved DLG (Zhao, Mopuri & Bilen 2020, arXiv 2001.02610): the label first, then DLG with it held fixed.

The released code hands the attack the true label; here it is inferred as the paper says.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.dlg import DLG, DLGOptions
from textleak.attacks.dummies.pictures import batch_size
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase
from textleak.exact.classes import single_class


@ATTACKS.register("idlg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class IDLG(DLGOptions):
    """The label from the classification head's gradient, then DLG; a batch of one, classification only."""

    when: ClassVar[str] = "you compare with iDLG; one sample"
    paper: ClassVar[str] = "Zhao et al. 2020"

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: not classification, more than one sentence, or a head whose gradient was not shared.
        """
        shared, model = view.shared, view.model
        if model.num_labels is None:
            raise InputError(
                f"iDLG reads a class off a classification head, and the task is {model.task}.",
                why="The labels of language modeling are the tokens.",
                fix="Use --attack dlg, which optimizes soft labels.",
            )
        size = batch_size(shared)
        if size > 1:
            raise InputError(
                f"iDLG works on one sentence or picture, and this batch has {size}.",
                why="With several, more than one entry of the bias gradient can be negative, or none.",
                fix="Use --attack dlg, or --attack cosine, which counts the batch's classes.",
            )
        labels_KB = None
        if shared.known.labels is None:
            yield Phase(name="labels", detail="the class whose entry of the bias gradient is negative")
            labels_KB = torch.full((self.restarts, 1), single_class(shared, model, generator))
        # All options are DLG's too.
        return (yield from DLG(**vars(self)).run(view, generator=generator, labels_KB=labels_KB))
