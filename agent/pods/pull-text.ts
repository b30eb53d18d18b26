import type { PullProgress } from "../runtime/port.ts";

const units = [
  { bytes: 1e9, name: "GB", decimals: 2 },
  { bytes: 1e6, name: "MB", decimals: 1 },
  { bytes: 1e3, name: "kB", decimals: 0 },
];

/** How far a pull is, for people: `Pulling image "web:1": 2 of 5 layers done, 12.3 of 40.0 MB downloaded`. Pure. */
export function pullText(image: string, progress: PullProgress): string {
  const { layers, layersDone, downloadedBytes, totalBytes } = progress;
  const begun = `Pulling image ${JSON.stringify(image)}`;
  if (layers === 0) return begun;
  const done = `${begun}: ${layersDone} of ${layers} ${layers === 1 ? "layer" : "layers"} done`;
  return totalBytes === 0 ? done : `${done}, ${sizesText(downloadedBytes, totalBytes)} downloaded`;
}

function sizesText(bytes: number, ofBytes: number): string {
  const unit = units.find((one) => ofBytes >= one.bytes);
  if (unit === undefined) return `${bytes} of ${ofBytes} bytes`;
  const inUnit = (value: number) => (value / unit.bytes).toFixed(unit.decimals);
  return `${inUnit(bytes)} of ${inUnit(ofBytes)} ${unit.name}`;
}
