// The data stream on the CPU (docs/data_stream.md): batches drawn sample by sample in order, bit for bit as defined.
//
//   RareCursor      arrivals of the rare units as a sorted list of entries (sample, feature, value)
//   FrequentCursor  gates and magnitudes of the frequent units, 16 samples at a time
//   JointCursor     gates and magnitudes of features that depend on each other, 32 samples at a time
//   RowCursor       everything, groups and noise included, as dense rows of 32 samples
#pragma once
#include "cpu/stream/frequent.inl"
#include "cpu/stream/rare.inl"
#include "cpu/stream/rows.inl"
