/** How many tests ended how. */
export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

interface FileReport {
  status?: string;
  assertionResults?: { status?: string }[];
}

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
