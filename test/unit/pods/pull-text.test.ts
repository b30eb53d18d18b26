import { expect, test } from "vitest";
import { pullText } from "../../../agent/pods/pull-text.ts";

test.each([
  [[0, 0, 0, 0], 'Pulling image "web:1"'],
  [[1, 0, 0, 0], 'Pulling image "web:1": 0 of 1 layer done'],
  [[5, 2, 0, 0], 'Pulling image "web:1": 2 of 5 layers done'],
  [[1, 0, 12, 512], 'Pulling image "web:1": 0 of 1 layer done, 12 of 512 bytes downloaded'],
  [[2, 1, 1_000, 999_000], 'Pulling image "web:1": 1 of 2 layers done, 1 of 999 kB downloaded'],
  [[3, 1, 123_456, 40_000_000], 'Pulling image "web:1": 1 of 3 layers done, 0.1 of 40.0 MB downloaded'],
  [[3, 3, 2e9, 2e9], 'Pulling image "web:1": 3 of 3 layers done, 2.00 of 2.00 GB downloaded'],
])("%j reads: %s", ([layers = 0, layersDone = 0, downloadedBytes = 0, totalBytes = 0], want) => {
  expect(pullText("web:1", { layers, layersDone, downloadedBytes, totalBytes })).toBe(want);
});
