import { describe, expect, test } from "vitest";
import {
  DerError,
  derTag,
  readBits,
  readBoolean,
  readElement,
  readElements,
  readOid,
  readSmallInteger,
  readText,
} from "../../../agent/lib/der-read.ts";

const hex = (text: string) => Buffer.from(text.replaceAll(" ", ""), "hex");
const first = (text: string) => readElements(hex(text))[0];

describe("readElements", () => {
  test("splits what follows one another", () => {
    const elements = readElements(hex("05 00 02 01 07 30 03 02 01 01"));
    expect(elements.map(({ tag, content }) => [tag, content.toString("hex")])).toEqual([
      [0x05, ""],
      [0x02, "07"],
      [0x30, "020101"],
    ]);
    expect(elements[2]?.raw.toString("hex")).toBe("3003020101");
  });

  test("reads long lengths", () => {
    expect(readElements(Buffer.concat([hex("04 81 80"), Buffer.alloc(128)]))[0]?.content).toHaveLength(128);
    expect(readElements(Buffer.concat([hex("04 82 01 00"), Buffer.alloc(256)]))[0]?.content).toHaveLength(256);
  });

  const refused: [name: string, data: string][] = [
    ["a tag alone", "30"],
    ["a value that is cut off", "04 03 01 02"],
    ["a length that is cut off", "04 82 01"],
    ["a length beyond all data", "04 84 ff ff ff ff 00"],
    ["a length of more than four bytes", "04 85 00 00 00 00 01 00"],
    ["an indefinite length", "30 80 00 00"],
    ["a length that is longer than needed", "04 81 01 00"],
    ["a length with leading zeros", `04 82 00 80 ${"00".repeat(128)}`],
    ["a tag above 30", "1f 81 00 00"],
  ];
  for (const [name, data] of refused) {
    test(`refuses ${name}`, () => expect(() => readElements(hex(data))).toThrow(DerError));
  }

  test("random bytes end in elements or a DerError", () => {
    let seed = 1;
    const random = () => (seed = (seed * 48271) % 2147483647) & 0xff;
    for (let i = 0; i < 2000; i += 1) {
      const data = Buffer.from(Array.from({ length: i % 40 }, random));
      try {
        readElements(data);
      } catch (err) {
        expect(err).toBeInstanceOf(DerError);
      }
    }
  });
});

test("readElement wants one element with one tag", () => {
  expect(readElement(hex("30 00"), derTag.sequence).content).toHaveLength(0);
  expect(() => readElement(hex("31 00"), derTag.sequence)).toThrow("expected tag 0x30, found 0x31");
  expect(() => readElement(hex(""), derTag.sequence)).toThrow("found nothing");
  expect(() => readElement(hex("30 00 05 00"), derTag.sequence)).toThrow("data behind the value");
});

test("readOid", () => {
  expect(readOid(first("06 03 55 04 03"))).toBe("2.5.4.3");
  expect(readOid(first("06 0a 2b 06 01 04 01 83 c2 43 02 00"))).toBe("1.3.6.1.4.1.57667.2.0");
  expect(readOid(first("06 03 88 37 03"))).toBe("2.999.3");
  for (const bad of [
    "06 00",
    "06 01 80",
    "06 02 55 84",
    "06 03 55 80 04",
    "02 01 01",
    `06 0a 55 ${"ff".repeat(8)} 7f`,
  ]) {
    expect(() => readOid(first(bad)), bad).toThrow(DerError);
  }
});

test("readBoolean", () => {
  expect(readBoolean(first("01 01 ff"))).toBe(true);
  expect(readBoolean(first("01 01 00"))).toBe(false);
  for (const bad of ["01 01 01", "01 00", "01 02 ff ff"]) expect(() => readBoolean(first(bad))).toThrow(DerError);
});

test("readSmallInteger", () => {
  expect(readSmallInteger(first("02 01 00"))).toBe(0);
  expect(readSmallInteger(first("02 02 00 80"))).toBe(128);
  expect(readSmallInteger(first("02 04 7f ff ff ff"))).toBe(2 ** 31 - 1);
  for (const bad of ["02 00", "02 01 ff", "02 02 00 01", "02 05 00 80 00 00 00"]) {
    expect(() => readSmallInteger(first(bad)), bad).toThrow(DerError);
  }
});

test("readBits", () => {
  expect(readBits(first("03 02 05 a0"))).toEqual([true, false, true]);
  expect(readBits(first("03 01 00"))).toEqual([]);
  for (const bad of ["03 00", "03 01 01", "03 02 08 00"]) expect(() => readBits(first(bad)), bad).toThrow(DerError);
});

test("readText knows the types that names are made of", () => {
  const text = (data: string) => readText(readElement(hex(data), hex(data)[0] ?? 0));
  expect(text("0c 02 c3 a9")).toBe("é");
  expect(text("13 01 61")).toBe("a");
  expect(text("12 02 31 32")).toBe("12");
  expect(text("16 01 40")).toBe("@");
  expect(text("14 01 e9")).toBe("é");
  expect(text("1e 02 20 ac")).toBe("€");
  expect(text("02 01 01")).toBeUndefined();
  for (const bad of ["0c 01 c3", "13 01 40", "12 01 61", "16 01 80", "1e 01 00", "1e 02 d8 00"]) {
    expect(() => text(bad), bad).toThrow(DerError);
  }
});
