/** How many tests ended how. */
export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

interface FileReport {
  name?: string;
  status?: string;
  message?: string;
  assertionResults?: { fullName?: string; status?: string; failureMessages?: string[] }[];
}

/** Lines of a failure's message that are worth repeating: what went wrong and where, not the whole stack. */
const messageLinesMax = 4;

/**
 * Counts one vitest run. What fails without being a test counts as one failed: a file that cannot be loaded, a run
 * that wrote no report or exited with an error though every test passed (an unhandled rejection, no tests at all).
 *
 * @param report text of vitest's JSON report; undefined if it wrote none
 * @param exitCode vitest's own
 */
export function countsOfReport(report: string | undefined, exitCode: number): Counts {
  const counts: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const { status, assertionResults = [] } of parseReport(report)) {
    const failedBefore = counts.failed;
    for (const { status: outcome } of assertionResults) {
      if (outcome === "passed") counts.passed += 1;
      else if (outcome === "failed") counts.failed += 1;
      else counts.skipped += 1;
    }
    if (status === "failed" && counts.failed === failedBefore) counts.failed += 1;
  }
  if (exitCode !== 0 && counts.failed === 0) counts.failed = 1;
  return counts;
}

export function addCounts(a: Counts, b: Counts): Counts {
  return { passed: a.passed + b.passed, failed: a.failed + b.failed, skipped: a.skipped + b.skipped };
}

/**
 * Each failure of one vitest run, its message cut to a few lines. They stand at the end of all output, where a person
 * looks first and where a log that was cut short still has them.
 */
export function failuresOfReport(report: string | undefined): string[] {
  return parseReport(report).flatMap(({ name = "", status, message = "", assertionResults = [] }) => {
    const file = name.replace(/^.*\/(?=test\/)/, "");
    const failed = assertionResults.filter((test) => test.status === "failed");
    if (failed.length === 0) return status === "failed" ? [failureText(file, message)] : [];
    return failed.map(({ fullName = "", failureMessages = [] }) =>
      failureText(`${file}: ${fullName}`, failureMessages.join("\n")),
    );
  });
}

function failureText(what: string, message: string): string {
  const lines = message.split("\n").filter((line) => line.trim() !== "");
  return [what, ...lines.slice(0, messageLinesMax).map((line) => `    ${line.trim()}`)].join("\n");
}

/** "12 passed, 0 failed", and how many were skipped if any were. */
export function summaryLine({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`;
}

function parseReport(report: string | undefined): FileReport[] {
  if (report === undefined) return [];
  try {
    const { testResults } = JSON.parse(report) as { testResults?: FileReport[] };
    return testResults ?? [];
  } catch {
    return []; // cut short: the exit code tells
  }
}
