"""Formats that misbehave, as another package would bring them: for the tests of faults."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from hwbench.formats._base import Format, Linear


class _Map(Linear):
    """A dense layer that does something before each call."""

    def __init__(self, out_features, in_features, generator, dtype, misbehave):
        super().__init__(out_features, in_features)
        weight = torch.randn(out_features, in_features, generator=generator).to(dtype)
        self.weight = torch.nn.Parameter(weight)
        self.misbehave = misbehave
        self.calls = 0

    def apply_weight(self, x):
        self.calls += 1
        out = self.misbehave(self.calls)
        return (x @ self.weight.T) if out is None else out(x @ self.weight.T)

    def to_dense(self):
        return self.weight


@dataclass(frozen=True, kw_only=True)
class _Faulty(Format):
    @classmethod
    def for_budget(cls, out_features, in_features, density, **knobs):
        return cls(out_features=out_features, in_features=in_features)

    def parameters(self):
        return self.out_features * self.in_features

    def random(self, *, dtype, generator):
        return _Map(self.out_features, self.in_features, generator, dtype, self.misbehave)

    def project(self, weight, *, activations=None):
        generator = torch.Generator()
        return _Map(*weight.shape, generator, weight.dtype, self.misbehave)

    @staticmethod
    def misbehave(calls):
        return None


class Tame(_Faulty):
    """Another package's format that behaves."""


class Segfault(_Faulty):
    """Dies of a segmentation fault in its first call."""

    @staticmethod
    def misbehave(calls):
        ctypes.string_at(0)


class LateDeath(_Faulty):
    """Dies in the rounds, after it ran well alone."""

    @staticmethod
    def misbehave(calls):
        if calls > 8:
            os._exit(3)


class Hang(_Faulty):
    """Never returns."""

    @staticmethod
    def misbehave(calls):
        time.sleep(10_000)


class Wrong(_Faulty):
    """Returns something else than x Wᵀ."""

    @staticmethod
    def misbehave(calls):
        return lambda y: y * 1.5


class NotANumber(_Faulty):
    """Returns NaN."""

    @staticmethod
    def misbehave(calls):
        return lambda y: y * float("nan")


class WrongShape(_Faulty):
    """Returns one column too few."""

    @staticmethod
    def misbehave(calls):
        return lambda y: y[:, 1:]


class Memory(_Faulty):
    """Asks for more memory than there is."""

    @staticmethod
    def misbehave(calls):
        torch.empty(10**15)


class Raises(_Faulty):
    """Raises an error of its own."""

    @staticmethod
    def misbehave(calls):
        raise ValueError("the kernel is not in the mood")


class RaisesLate(_Faulty):
    """Raises in the rounds, after it ran well alone."""

    @staticmethod
    def misbehave(calls):
        if calls > 8:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Chatty(_Faulty):
    """Prints to standard output, as libraries do."""

    @staticmethod
    def misbehave(calls):
        print('{"say":"soloed"}')
        os.write(1, b"more noise\n")


class WrongDtype(_Faulty):
    """Returns float64 for float32."""

    @staticmethod
    def misbehave(calls):
        return lambda y: y.double()


class OomPrepare(_Faulty):
    """Asks for more memory than there is when it is built."""

    def random(self, *, dtype, generator):
        torch.empty(10**15)


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.empty(10**15) + gradient


class OomBackward(_Faulty):
    """Asks for more memory than there is in its backward pass."""

    @staticmethod
    def misbehave(calls):
        return _Gradient.apply


class Exits(_Faulty):
    """Ends the process as if all were well."""

    @staticmethod
    def misbehave(calls):
        raise SystemExit(0)


class Leaks(_Faulty):
    """Keeps a megabyte of every call."""

    kept: ClassVar[list] = []

    @staticmethod
    def misbehave(calls):
        Leaks.kept.append(torch.ones(2**18))


class Settings(_Faulty):
    """Changes settings of torch that belong to everyone."""

    @staticmethod
    def misbehave(calls):
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)


class NoGrad(_Faulty):
    """Switches gradients off for everyone."""

    @staticmethod
    def misbehave(calls):
        torch.set_grad_enabled(False)
