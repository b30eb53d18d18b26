import { expect, test } from "vitest";
import {
  formatBytesKi,
  formatMilliCPU,
  parseQuantity,
  quantityMilli,
  quantityValue,
} from "../../../agent/kube/quantity.ts";

test.each([
  ["0", 0, 0],
  ["1", 1, 1000],
  ["100m", 1, 100],
  ["1.5", 2, 1500],
  ["128Mi", 134_217_728, 134_217_728_000],
  ["1e3", 1000, 1_000_000],
  ["1E3", 1000, 1_000_000],
  ["1.5Gi", 1_610_612_736, 1_610_612_736_000],
  ["2E", 2e18, 2e21],
  ["1n", 1, 1],
  [".5", 1, 500],
  [4, 4, 4000],
  ["-100m", -1, -100],
] as const)("quantity %s is %d whole units and %d milli", (q, value, milli) => {
  expect(quantityValue(q)).toBe(value);
  expect(quantityMilli(q)).toBe(milli);
});

test.each(["", "1x", "1Kii", "--1", ".", "1 0"])("%j is no quantity", (q) => {
  expect(parseQuantity(q)).toBeUndefined();
});

test("formats as the API does", () => {
  expect(formatBytesKi(2048)).toBe("2Ki");
  expect(formatBytesKi(1000)).toBe("1000");
  expect(formatMilliCPU(2000)).toBe("2");
  expect(formatMilliCPU(1500)).toBe("1500m");
});
