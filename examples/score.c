/* Twice a number, as C. */
long score(long n)
{
    return 2 * n;
}
