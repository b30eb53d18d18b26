import { describe, expect, test } from "vitest";
import {
  checkPayload,
  parentsOf,
  payloadDepthMax,
  payloadNameBytesMax,
  payloadPathBytesMax,
  validatePath,
} from "../../../agent/volumes/payload.ts";
import { payloadOf } from "./writer-support.ts";

describe("validatePath", () => {
  test.each([
    ["a", "a"],
    ["a/b", "a/b"],
    ["./a//b/", "a/b"],
    ["a..b", "a..b"],
    ["a/..b", "a/..b"],
    ["a/..data", "a/..data"],
    [".hidden", ".hidden"],
    ["x".repeat(payloadNameBytesMax), "x".repeat(payloadNameBytesMax)],
    [`.${"/a".repeat(payloadDepthMax)}`, `a${"/a".repeat(payloadDepthMax - 1)}`],
    [`a${"/".repeat(4000)}b`, "a/b"],
  ])("takes %s", (path, want) => expect(validatePath(path)).toBe(want));

  test.each([
    ["", "is empty"],
    ["/etc/passwd", "is absolute"],
    ["..", 'must not contain ".."'],
    ["../etc/passwd", 'must not contain ".."'],
    ["a/../../b", 'must not contain ".."'],
    ["a/..", 'must not contain ".."'],
    ["..data", 'must not start with ".."'],
    ["..data_tmp", 'must not start with ".."'],
    ["..2026_01_31_23_59_59.1", 'must not start with ".."'],
    ["..anything/else", 'must not start with ".."'],
    ["./..data", 'must not start with ".."'],
    [".", "names the volume itself"],
    ["a\0b", "NUL"],
    ["x".repeat(payloadNameBytesMax + 1), "part longer than 255 bytes"],
    ["ü".repeat(payloadNameBytesMax / 2 + 1), "part longer than 255 bytes"],
    ["x/".repeat(payloadPathBytesMax / 2 + 1), "longer than 4096 bytes"],
    ["x/".repeat(payloadDepthMax + 1), "has more than 64 parts"],
  ])("refuses %s", (path, why) => expect(() => validatePath(path)).toThrow(why));
});

describe("checkPayload", () => {
  test("the later of two equal paths stays", () => {
    const files = checkPayload(payloadOf({ "a/b": "first", "./a//b": "second" }));
    expect([...files].map(([path, { data }]) => [path, Buffer.from(data).toString()])).toEqual([["a/b", "second"]]);
  });

  test.each([
    { a: "", "a/b": "" },
    { "a/b/c": "", a: "" },
  ])("refuses a file that is a directory, too: %o", (files) => {
    expect(() => checkPayload(payloadOf(files))).toThrow('leads through "a", which is a file of this volume, too');
  });

  test("names the outermost file that is in the way", () => {
    const files = { "a/b/c/d": "", "a/b": "", "a/b/c": "" };
    expect(() => checkPayload(payloadOf(files))).toThrow('leads through "a/b", which is');
  });
});

test.each([
  ["a", []],
  ["a/b", ["a"]],
  ["a/b/c", ["a", "a/b"]],
])("parentsOf %s", (path, want) => expect(parentsOf(path)).toEqual(want));
