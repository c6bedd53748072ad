"""Builds an index over a few hundred megabytes of documents in memory, then checks every byte of it.

An ordinary Python program: it knows nothing of tiers. Usage: build_index.py [NUMBER OF DOCUMENTS]
"""

import hashlib
import struct
import sys
import zlib
from array import array

TERMS = 1 << 16


def make_document(number):
    """Returns 1 KiB that depends on the number alone, and the 16 terms in it."""
    digest = hashlib.blake2b(number.to_bytes(8, "little")).digest()
    return digest * 16, struct.unpack("<32H", digest)[:16]


def build(count):
    documents = []
    index = [array("I") for _ in range(TERMS)]
    for number in range(count):
        text, terms = make_document(number)
        documents.append(text)
        for term in terms:
            index[term].append(number)
        if number % 20000 == 19999:
            print(f"indexed {number + 1} of {count} documents", flush=True)
    return documents, index


def check(documents, index):
    """Makes every document again and compares; then counts the index's entries and their sum."""
    entries = total = 0
    for number, stored in enumerate(documents):
        text, terms = make_document(number)
        if zlib.crc32(stored) != zlib.crc32(text) or stored != text:
            sys.exit(f"document {number} is damaged")
        entries += len(terms)
        total += number * len(terms)
        if number % 20000 == 19999:
            print(f"checked {number + 1} of {len(documents)} documents", flush=True)
    if sum(map(len, index)) != entries or sum(map(sum, index)) != total:
        sys.exit("the index is damaged")
    for term in range(0, TERMS, 997):
        for number in index[term]:
            if term not in make_document(number)[1]:
                sys.exit(f"the index entry of term {term} is damaged")
    return entries


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400_000
    documents, index = build(count)
    entries = check(documents, index)
    size = sum(map(len, documents)) >> 20
    print(f"correct: {count} documents, {size} MiB of text, {entries} index entries", flush=True)


main()
