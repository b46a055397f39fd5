/* A weighted sum: publish it again with another WEIGHT while the service runs. */

#ifndef WEIGHT
#define WEIGHT 1
#endif

double kernel(const double *samples, long n)
{
    double sum = 0;
    for (long i = 0; i < n; i++)
        sum += WEIGHT * samples[i];
    return sum;
}
