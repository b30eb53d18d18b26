/** The system's error code of anything thrown: `ENOENT`, `EBUSY` …; undefined if it has none. */
export function errnoOf(err: unknown): string | undefined {
  const code = err instanceof Error && "code" in err ? err.code : undefined;
  return typeof code === "string" ? code : undefined;
}

/** For `.catch()`: turns these system errors into `undefined` and rethrows the rest. */
export function ignoreErrno(...codes: string[]): (err: unknown) => undefined {
  return (err) => {
    if (!codes.includes(errnoOf(err) ?? "")) throw err;
    return undefined;
  };
}
