/** How a text is shown. */
export interface TextStyle {
  /** Columns of the terminal. */
  columns: number;
  isColoured: boolean;
}

const codes = { red: 31, green: 32, yellow: 33, bold: 1, dim: 2 };

/** Colours a text if the style has colours. */
export function painted(text: string, colour: keyof typeof codes, { isColoured }: TextStyle): string {
  return isColoured && text !== "" ? `\u001b[${codes[colour]}m${text}\u001b[0m` : text;
}

/** A duration in at most two units: "120ms", "4.2s", "1m12s", "3h5m", "2d4h". */
export function durationText(ms: number): string {
  const whole = Math.max(0, ms);
  if (whole < 1_000) return `${Math.round(whole)}ms`;
  if (whole < 10_000) return `${(Math.floor(whole / 100) / 10).toFixed(1)}s`;
  const seconds = Math.floor(whole / 1_000);
  if (seconds < 60) return `${seconds}s`;
  const [minutes, hours, days] = [Math.floor(seconds / 60), Math.floor(seconds / 3_600), Math.floor(seconds / 86_400)];
  if (hours < 1) return `${minutes}m${seconds % 60}s`;
  if (days < 1) return `${hours}h${minutes % 60}m`;
  return `${days}d${hours % 24}h`;
}

/** Breaks a text into lines of at most `columns`; a word that is longer is cut. At least one line. */
export function wrapped(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (let word of text.split(" ")) {
    if (line !== "" && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = "";
    }
    while (word.length > columns) {
      lines.push(word.slice(0, columns));
      word = word.slice(columns);
    }
    line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

/** A text that cannot do anything to a terminal: what containers say must not. */
export function harmless(text: string): string {
  // Control and format characters: escape sequences, and marks that reorder what follows.
  return text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ").trim();
}
