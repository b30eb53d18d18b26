export interface TerminalSize {
  readonly width: number;
  readonly height: number;
}

// An object is some thirty characters. What is longer without an end is none.
const objectCharsMax = 1_000;

const sideMax = 65_535;

/**
 * Reads a client's terminal sizes: JSON objects one after another, cut anywhere.
 *
 * @returns takes the next bytes; gives the newest size that is complete in them. What is no size is passed over.
 */
export function parseSizes(): (chunk: Buffer) => TerminalSize | undefined {
  let rest = "";
  return (chunk) => {
    let newest: TerminalSize | undefined;
    const [...objects] = (rest + chunk.toString("latin1")).split("}");
    rest = (objects.pop() ?? "").slice(-objectCharsMax);
    for (const text of objects) newest = sizeOf(`${text}}`) ?? newest;
    return newest;
  };
}

function sizeOf(text: string): TerminalSize | undefined {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value !== "object" || value === null || !("Width" in value) || !("Height" in value)) return undefined;
    const { Width: width, Height: height } = value;
    return isSide(width) && isSide(height) ? { width, height } : undefined;
  } catch {
    return undefined;
  }
}

function isSide(value: unknown): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value <= sideMax;
}
