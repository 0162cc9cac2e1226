"""The autoencoder ops of a large model on CUDA: the walk over tiles of models, samples and features.

Products by torch.mm and torch.bmm (cuBLAS; TF32 as torch.backends.cuda.matmul says, bfloat16 with float32
sums), what is between them by csrc/cuda/layer/large.cuh; tied_autoencoder_plan.py says how large a tile is.

Outside of a CUDA graph's capture a call waits for the device to look at how many outputs of a tile have a
gradient, and takes only those where they are few. A captured call multiplies them all; its bits may differ
from an uncaptured one's in the last place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from toykern import _native
from toykern.network.activations import ACTIVATIONS
from toykern.ops.tied_autoencoder_call import Optional
from toykern.ops.tied_autoencoder_cuda_call import CudaCall
from toykern.ops.tied_autoencoder_plan import TILE_COLUMNS, TILE_ROWS, plan

(_OUTPUT, _CODES, _CODE_GRADIENT, _ENCODE_ENTRIES, _ENCODER_ENTRIES, _VALUE_GRADIENT, _ACTIVE_CODES,
 _ACTIVE_DECODER) = range(8)  # fmt: skip

ACTIVE_SHARE = {torch.float32: 1 / 64, torch.bfloat16: 1 / 256}
"""Share of outputs with a gradient up to which they are taken one by one. An estimate from the widths of
products and second caches of current GPUs, not measured."""

ACTIVE_WORK = 1 << 28
"""Multiply-adds of a tile below which looking at that share would cost more than it saves."""


class Large:
    """The tiles of one call: see the plan. The call holds the tensors."""

    def __init__(self, call: CudaCall) -> None:
        self.call, self.kernels, self.device = call, call.kernels, call.device
        p = call.params
        self.n, self.m, self.bf16 = call.features, call.hidden, call.bf16
        self.sparse = call.x is None
        self.weights_wanted = call.encoder_grad is not None
        self.input_wanted = call.input_grad is not None
        self.codes_wanted = self.weights_wanted or self.input_wanted  # their gradient
        self.z_wanted = (
            call.task != "backward" or not p.output or not _native.slope_from_output(p.output_activation)
        )
        work = call.models * call.batch * self.n * self.m
        relu = p.output_activation == ACTIVATIONS["relu"].number
        self.may_look = self.codes_wanted and relu and work >= ACTIVE_WORK and self.kernels.can_look()
        slopes = self.codes_wanted and not _native.slope_from_output(p.hidden_activation)
        self.plan = plan(
            call.models, call.batch, self.n, self.m, bf16=self.bf16, entries=call.entries,
            gradients=self.codes_wanted, rows_of_encoder=self.sparse or self.may_look, slopes=slopes,
        )  # fmt: skip
        self.tile = _native.LayerTileParams()
        self.tile.p, self.tile.bf16, self.tile.entries = p, self.bf16, call.entries
        models, size = call.models, self.plan
        rows = size.rows
        self.codes = self._floats(size.models * rows * self.m)
        # Of the codes, where they do not tell them.
        self.slopes = self._floats(size.models * rows * self.m) if slopes else None
        self.z = self._floats(size.models * rows * size.features)
        blocks = -(-rows // TILE_ROWS)
        across = -(-size.features // TILE_COLUMNS)
        self.loss_sums = self._floats(size.models * max(blocks * across, rows))
        self.active = call.new(size.models * blocks * across, dtype=torch.int32)
        self.code_bias = self._code_bias()
        if self.bf16:
            self.stored_codes = call.new(size.models * rows * self.m)
            self.dz = call.new(size.models * rows * size.features)
        if self.codes_wanted:
            self.code_grad = self._floats(size.models * rows * self.m)
            self.stored_code_grad = call.new(size.models * rows * self.m) if self.bf16 else self.code_grad
            self.column_sums = self._floats(size.models * blocks * max(size.features, self.m))
            self.bias_sum = call.new(models, self.n, dtype=torch.float32, zero=True)
            self.code_bias_sum = call.new(models, self.m, dtype=torch.float32, zero=True)
        self.encoder_rows: Optional = None
        if call.entries or self.may_look:
            self.encoder_rows = call.new(size.models * size.features * self.m)
        if call.entries and self.weights_wanted:
            self._sort_entries()

    def _floats(self, count: int) -> torch.Tensor:
        return self.call.new(count, dtype=torch.float32)

    def _at_floats(self, name: str, tensor: torch.Tensor) -> int:
        return self.call.at(name, tensor, torch.float32)

    def _counting(self, count: int) -> torch.Tensor:
        return torch.arange(count, dtype=torch.int64, device=self.device)

    def _code_bias(self) -> Optional:
        """c − E b·centered, `[models, m]` in float32."""
        call = self.call
        found = None if call.hidden_bias is None else call.hidden_bias.float()
        if call.centered:
            assert call.bias is not None
            shift = self._floats(call.models * self.m).view(call.models, self.m, 1)
            self.kernels.product(shift, call.weight, call.bias.unsqueeze(2), False)
            found = -shift.squeeze(2) if found is None else found - shift.squeeze(2)
        return None if found is None else call.keep(found.contiguous())

    def _sort_entries(self) -> None:
        """Entries by (model and) feature, samples rising within each; all on the device."""
        call, n = self.call, self.n
        assert call.row_start is not None and call.feature is not None
        row = torch.searchsorted(call.row_start, self._counting(call.entries), right=True) - 1
        stacks = 1 if call.params.row_stride == 0 else call.models
        key = call.feature.long()
        if stacks > 1:
            key = key + row // call.batch * n
        rising, order = torch.sort(key, stable=True)
        start = torch.searchsorted(rising, self._counting(stacks * n + 1))
        self.tile.by_feature = call.at("order", call.keep(order), torch.int64)
        self.tile.feature_start = call.at("start", call.keep(start), torch.int64)
        self.tile.entry_row = call.at("row", call.keep(row), torch.int64)

    # ---- the walk over tiles ----

    def run(self) -> None:
        """All tiles, in order."""
        call, size = self.call, self.plan
        for model in range(0, call.models, size.models):
            models = min(size.models, call.models - model)
            for row in range(0, call.batch, size.rows):
                self._segment(model, models, row, min(size.rows, call.batch - row))
        self._finish()

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.n, self.plan.features):
            yield first, min(self.plan.features, self.n - first)

    def _at(self, first: int, features: int) -> None:
        self.tile.first_feature, self.tile.features = first, features

    def _segment(self, model: int, models: int, row: int, rows: int) -> None:
        tile, m = self.tile, self.m
        tile.first_model, tile.models, tile.first_row, tile.rows = model, models, row, rows
        self.group, self.first_of_batch = slice(model, model + models), row == 0
        self.h = self.codes[: models * rows * m].view(models, rows, m)
        self.stored_h = self.h
        tile.codes = self._at_floats("codes", self.h)
        tile.slopes = 0 if self.slopes is None else self._at_floats("slopes", self.slopes)
        tile.code_bias = 0 if self.code_bias is None else self._at_floats("code_bias", self.code_bias)
        tile.stored_codes = 0
        if self.bf16:
            self.stored_h = self.stored_codes[: models * rows * m].view(models, rows, m)
            tile.stored_codes = self.call.at("stored_codes", self.stored_h)
        tile.loss_sums = self._at_floats("loss_sums", self.loss_sums)
        tile.column_sums = tile.active = 0
        self._encode(row, rows)
        if self.codes_wanted:
            self.dh = self.code_grad[: models * rows * m].view(models, rows, m)
            self.da = self.stored_code_grad[: models * rows * m].view(models, rows, m)
            tile.code_grad = self._at_floats("code_grad", self.dh)
            tile.stored_code_grad = self.call.at("stored_code_grad", self.da) if self.bf16 else 0
            tile.column_sums = self._at_floats("column_sums", self.column_sums)
        self._decode(models, row, rows)
        if self.codes_wanted:
            self._encoder_gradients(row, rows)

    def _encode(self, row: int, rows: int) -> None:
        call = self.call
        if call.x is not None:
            x, encoder = self._rows_of(call.x, row, rows), call.weight[self.group]
            self.kernels.product(self.h, x, encoder.mT, False)
        else:
            self.h.zero_()
            if call.entries:
                for first, features in self._chunks():
                    self._at(first, features)
                    self._put_encoder_rows(first, features)
                    self.kernels.tile(self.tile, _ENCODE_ENTRIES)
        self.kernels.tile(self.tile, _CODES)
        if call.l1 is not None:
            self._add_to_loss(rows, 1, call.l1, call.params.l1_stride, call.params.l1_scale)

    def _rows_of(self, x: torch.Tensor, row: int, rows: int) -> torch.Tensor:
        models = self.tile.models
        chosen = x[self.group] if x.shape[0] > 1 else x.expand(models, -1, -1)
        return chosen[:, row : row + rows]

    def _put_encoder_rows(self, first: int, features: int) -> None:
        self._put_rows(self.call.weight[self.group, :, first : first + features].mT)

    def _put_rows(self, rows: torch.Tensor) -> None:
        """Rows `[models, features, m]` to where the kernels look for them."""
        assert self.encoder_rows is not None
        copy = self.encoder_rows[: rows.numel()].view(rows.shape)
        copy.copy_(rows)
        self.tile.encoder_rows = self.call.at("encoder_rows", copy)

    def _decoder_rows(self, first: int, features: int) -> torch.Tensor:
        """D's rows of a tile, `[models, features, m]`: a view."""
        call = self.call
        if call.decoder is not None:
            return call.decoder[self.group, first : first + features]
        return call.weight[self.group, :, first : first + features].mT

    def _decode(self, models: int, row: int, rows: int) -> None:
        call, tile = self.call, self.tile
        blocks = -(-rows // TILE_ROWS)
        first_tile = True
        for first, features in self._chunks():
            self._at(first, features)
            count = models * rows * features
            z = self.z[:count].view(models, rows, features)
            tile.z = 0
            if self.z_wanted:
                self.kernels.product(z, self.stored_h, self._decoder_rows(first, features).mT, False)
                tile.z = self._at_floats("z", z)
            dz = self.dz[:count].view(models, rows, features) if self.bf16 else z
            tile.dz = call.at("dz", dz) if self.codes_wanted else 0
            across = -(-features // TILE_COLUMNS)
            looks = self.may_look and count * self.m >= ACTIVE_WORK
            tile.active = call.at("active", self.active, torch.int32) if looks else 0
            self.kernels.tile(tile, _OUTPUT)
            if call.loss is not None:
                self._add_to_loss(blocks, across, None, 0, call.params.loss_scale)
            if not self.codes_wanted:
                continue
            self._add_columns(self.bias_sum, blocks, features, first)
            share = 1.0
            if looks:
                share = float(self.active[: models * blocks * across].sum()) / count
            self._decoder_gradients(dz, first, features, share, first_tile)
            first_tile = False

    def _decoder_gradients(
        self, dz: torch.Tensor, first: int, features: int, share: float, first_tile: bool
    ) -> None:
        """dh += dz D; and dD = dzᵀ h, which a tied encoder's gradient begins with."""
        call, tile = self.call, self.tile
        few = share <= ACTIVE_SHARE[call.dtype]
        decoder = self._decoder_rows(first, features)
        if few:
            if first_tile:
                self.dh.zero_()
            self._put_rows(decoder)
            self.kernels.tile(tile, _ACTIVE_CODES)
        else:
            self.kernels.product(self.dh, dz, decoder, not first_tile)
        if not self.weights_wanted:
            return
        if few:
            tile.add = not self.first_of_batch
            self.kernels.tile(tile, _ACTIVE_DECODER)
        elif call.decoder_grad is not None:
            out = call.decoder_grad[self.group, first : first + features]
            self.kernels.product(out, dz.mT, self.stored_h, not self.first_of_batch)
        else:
            assert call.encoder_grad is not None
            out = call.encoder_grad[self.group, :, first : first + features]
            self.kernels.product(out, self.stored_h.mT, dz, not self.first_of_batch)

    def _encoder_gradients(self, row: int, rows: int) -> None:
        call, tile = self.call, self.tile
        self.kernels.tile(tile, _CODE_GRADIENT)
        self._add_columns(self.code_bias_sum, -(-rows // TILE_ROWS), self.m, 0)
        add = call.tied or not self.first_of_batch
        if call.x is not None:
            if call.encoder_grad is not None:
                x = self._rows_of(call.x, row, rows)
                self.kernels.product(call.encoder_grad[self.group], self.da.mT, x, add)
            if call.input_grad is not None:
                out = call.input_grad[self.group, row : row + rows]
                self.kernels.product(out, self.da, call.weight[self.group], True)
            return
        if not call.entries:
            if call.encoder_grad is not None and not add:
                call.encoder_grad[self.group].zero_()
            return
        tile.add = add
        for first, features in self._chunks():
            self._at(first, features)
            if call.encoder_grad is not None:
                self.kernels.tile(tile, _ENCODER_ENTRIES)
            if call.input_grad is not None:
                self._put_encoder_rows(first, features)
                self.kernels.tile(tile, _VALUE_GRADIENT)

    def _add_columns(self, to: torch.Tensor, blocks: int, count: int, first: int) -> None:
        sums = _native.LayerSums()
        sums.from_, sums.models = self._at_floats("column_sums", self.column_sums), self.tile.models
        sums.blocks, sums.count, sums.first = blocks, count, first
        sums.to, sums.to_stride = self._at_floats("sums", to[self.group]), to.shape[1]
        self.kernels.sums(sums)

    def _add_to_loss(self, blocks: int, count: int, scale: Optional, stride: int, factor: float) -> None:
        assert self.call.loss is not None
        sums = _native.LayerSums()
        sums.whole, sums.models = True, self.tile.models
        sums.from_ = self._at_floats("loss_sums", self.loss_sums)
        sums.blocks, sums.count, sums.factor = blocks, count, factor
        sums.to, sums.to_stride = self._at_floats("loss", self.call.loss[self.group]), 1
        if scale is not None:
            of_group = scale[self.group if stride else slice(None)]
            sums.scale, sums.scale_stride = self._at_floats("scale", of_group), stride
        self.kernels.sums(sums)

    def _finish(self) -> None:
        """Biases in the caller's dtype; dE = da (x − b)ᵀ and db −= Eᵀ da where the bias is taken off x."""
        call = self.call
        if not self.weights_wanted:
            return
        assert call.encoder_grad is not None
        if call.centered:
            assert call.bias is not None
            codes = self.code_bias_sum.to(call.dtype)
            torch.baddbmm(
                call.encoder_grad, codes.unsqueeze(2), call.bias.unsqueeze(1), alpha=-1, out=call.encoder_grad
            )
            through = self._floats(call.models * self.n).view(call.models, 1, self.n)
            self.kernels.product(through, codes.unsqueeze(1), call.weight, False)
            self.bias_sum -= through.squeeze(1)
        if call.bias_grad is not None:
            call.bias_grad.copy_(self.bias_sum)
        if call.hidden_grad is not None:
            call.hidden_grad.copy_(self.code_bias_sum)
