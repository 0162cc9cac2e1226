"""`device=`: what this machine cannot give is said, by name."""

import pytest
import torch

import toykern as tk
from toykern.devices import check_device


def test_the_cpu_is_a_device():
    assert tk.TiedAutoencoder(3, 2, device="cpu").weight.device.type == "cpu"
    assert check_device(None) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_refused_with_the_reason():
    with pytest.raises(RuntimeError, match=r"device is 'cuda'.*use device='cpu'"):
        tk.TiedAutoencoder(3, 2, device="cuda")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5])
def test_what_is_no_device_is_refused_by_name(device):
    with pytest.raises(ValueError, match="device must be"):
        tk.TiedAutoencoder(3, 2, device=device)


def test_fit_refuses_other_devices_by_name():
    model = tk.TiedAutoencoder(3, 2).to("meta")
    with pytest.raises(RuntimeError, match="model is on the device 'meta', where fit cannot run"):
        tk.fit(model, tk.SparseFeatures(3, 0.1), 3)
