"""Guest memory: copies, strings, sequences and true atomics by guest addresses, and the regions behind them.

The one door of this room. It owns: address arithmetic, the mappings of a guest's memory and everything that
reads or writes through them, and what two processes need to share any memory at all (atomics, the fence). It
knows nothing of rings, devices or VMMs.

Layers, each importing only what stands before it: errors, access, ranges, blocks, io, sequence, regions
(pure); atomics, fence (instructions); bytes_memory; mapping (system calls); segments, address_space,
guest_memory.

The semantics are those of gVisor's ``usermem``, to the count and the errno, in Python's form: a count is
returned, a shortfall is an exception that carries it. Where upstream's code and its documentation differ, the
documentation holds. Left out is only what names gVisor's own address spaces.

Lazy, since everybody who wants the fence comes through here: mmap and ctypes come with their first user.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supervisor.memory.access import AccessType as AccessType
    from supervisor.memory.atomics import Atomics as Atomics
    from supervisor.memory.atomics import allow_machine_code as allow_machine_code
    from supervisor.memory.atomics import true_atomics as true_atomics
    from supervisor.memory.blocks import BlockReader as BlockReader
    from supervisor.memory.blocks import BlockSeq as BlockSeq
    from supervisor.memory.blocks import BlockSeqReader as BlockSeqReader
    from supervisor.memory.blocks import BlockSeqWriter as BlockSeqWriter
    from supervisor.memory.blocks import BlockWriter as BlockWriter
    from supervisor.memory.blocks import FromReader as FromReader
    from supervisor.memory.blocks import FromWriter as FromWriter
    from supervisor.memory.blocks import copy_seq as copy_seq
    from supervisor.memory.blocks import read_full_to_blocks as read_full_to_blocks
    from supervisor.memory.blocks import write_full_from_blocks as write_full_from_blocks
    from supervisor.memory.blocks import zero_seq as zero_seq
    from supervisor.memory.bytes_memory import BytesMemory as BytesMemory
    from supervisor.memory.errors import BadRegion as BadRegion
    from supervisor.memory.errors import EndOfData as EndOfData
    from supervisor.memory.errors import EndOfSpace as EndOfSpace
    from supervisor.memory.errors import MappingFailed as MappingFailed
    from supervisor.memory.errors import MemoryClosed as MemoryClosed
    from supervisor.memory.errors import MemoryFault as MemoryFault
    from supervisor.memory.errors import NoTrueAtomics as NoTrueAtomics
    from supervisor.memory.errors import ViewsAlive as ViewsAlive
    from supervisor.memory.errors import done_of as done_of
    from supervisor.memory.errors import set_done as set_done
    from supervisor.memory.fence import FENCE as FENCE
    from supervisor.memory.guest_memory import GuestMemory as GuestMemory
    from supervisor.memory.io import IO as IO
    from supervisor.memory.io import IOReadWriter as IOReadWriter
    from supervisor.memory.io import copy_in_vec as copy_in_vec
    from supervisor.memory.io import copy_int32_string_in_vec as copy_int32_string_in_vec
    from supervisor.memory.io import copy_int32_strings_in_vec as copy_int32_strings_in_vec
    from supervisor.memory.io import copy_out_vec as copy_out_vec
    from supervisor.memory.io import copy_string_in as copy_string_in
    from supervisor.memory.io import zero_out_vec as zero_out_vec
    from supervisor.memory.ranges import AddrRange as AddrRange
    from supervisor.memory.ranges import AddrRangeSeq as AddrRangeSeq
    from supervisor.memory.ranges import add_length as add_length
    from supervisor.memory.ranges import cache_line_round_up as cache_line_round_up
    from supervisor.memory.ranges import page_round_down as page_round_down
    from supervisor.memory.ranges import page_round_up as page_round_up
    from supervisor.memory.ranges import to_range as to_range
    from supervisor.memory.regions import MAX_REGIONS as MAX_REGIONS
    from supervisor.memory.regions import Region as Region
    from supervisor.memory.sequence import IOSequence as IOSequence
    from supervisor.memory.sequence import SequenceReader as SequenceReader
    from supervisor.memory.sequence import SequenceWriter as SequenceWriter

_DOORS = {
    "AccessType": "access",
    "Atomics": "atomics",
    "allow_machine_code": "atomics",
    "true_atomics": "atomics",
    "BlockReader": "blocks",
    "BlockSeq": "blocks",
    "BlockSeqReader": "blocks",
    "BlockSeqWriter": "blocks",
    "BlockWriter": "blocks",
    "FromReader": "blocks",
    "FromWriter": "blocks",
    "copy_seq": "blocks",
    "read_full_to_blocks": "blocks",
    "write_full_from_blocks": "blocks",
    "zero_seq": "blocks",
    "BytesMemory": "bytes_memory",
    "BadRegion": "errors",
    "EndOfData": "errors",
    "EndOfSpace": "errors",
    "MappingFailed": "errors",
    "MemoryClosed": "errors",
    "MemoryFault": "errors",
    "NoTrueAtomics": "errors",
    "ViewsAlive": "errors",
    "done_of": "errors",
    "set_done": "errors",
    "FENCE": "fence",
    "GuestMemory": "guest_memory",
    "IO": "io",
    "IOReadWriter": "io",
    "copy_in_vec": "io",
    "copy_int32_string_in_vec": "io",
    "copy_int32_strings_in_vec": "io",
    "copy_out_vec": "io",
    "copy_string_in": "io",
    "zero_out_vec": "io",
    "AddrRange": "ranges",
    "AddrRangeSeq": "ranges",
    "add_length": "ranges",
    "cache_line_round_up": "ranges",
    "page_round_down": "ranges",
    "page_round_up": "ranges",
    "to_range": "ranges",
    "MAX_REGIONS": "regions",
    "Region": "regions",
    "IOSequence": "sequence",
    "SequenceReader": "sequence",
    "SequenceWriter": "sequence",
}

__all__ = [
    "FENCE",
    "IO",
    "MAX_REGIONS",
    "AccessType",
    "AddrRange",
    "AddrRangeSeq",
    "Atomics",
    "BadRegion",
    "BlockReader",
    "BlockSeq",
    "BlockSeqReader",
    "BlockSeqWriter",
    "BlockWriter",
    "BytesMemory",
    "EndOfData",
    "EndOfSpace",
    "FromReader",
    "FromWriter",
    "GuestMemory",
    "IOReadWriter",
    "IOSequence",
    "MappingFailed",
    "MemoryClosed",
    "MemoryFault",
    "NoTrueAtomics",
    "Region",
    "SequenceReader",
    "SequenceWriter",
    "ViewsAlive",
    "add_length",
    "allow_machine_code",
    "cache_line_round_up",
    "copy_in_vec",
    "copy_int32_string_in_vec",
    "copy_int32_strings_in_vec",
    "copy_out_vec",
    "copy_seq",
    "copy_string_in",
    "done_of",
    "page_round_down",
    "page_round_up",
    "read_full_to_blocks",
    "set_done",
    "to_range",
    "true_atomics",
    "write_full_from_blocks",
    "zero_out_vec",
    "zero_seq",
]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(import_module(f"{__name__}.{_DOORS[name]}"), name)
    globals()[name] = value
    return value
